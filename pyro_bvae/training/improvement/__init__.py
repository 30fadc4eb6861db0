"""The guide trained on, with the model fixed."""
