"""Training, export and publishing of the towers."""
