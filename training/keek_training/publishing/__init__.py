"""From a trained run to a live release."""
