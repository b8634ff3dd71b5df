"""Images to features: encoders by name, and slides and cells to bags."""
