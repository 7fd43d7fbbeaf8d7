"""Labels after the run: open, check, count, look. Everything here reads storage alone, at any time."""
