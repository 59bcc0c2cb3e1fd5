"""Generated from proto/keek/v1 (`make proto`); never edited by hand."""
