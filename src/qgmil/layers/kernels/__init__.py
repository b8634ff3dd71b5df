"""Fused arithmetic: the same equations as the plain layers, with hand-written backward passes and fewer copies."""
