"""The demonstration: Keek's main job, end to end, with the commands that anyone would use."""
