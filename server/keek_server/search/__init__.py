"""Finding videos by what they show, and people by what they like."""
