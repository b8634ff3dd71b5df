"""The mathematics: norm, attention, feed-forward and pooling over packed bags."""
