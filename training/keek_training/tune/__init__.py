"""`keek-train tune`: a search for a better configuration, judged on a validation part of the training."""
