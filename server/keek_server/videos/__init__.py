"""The catalogue of videos."""
