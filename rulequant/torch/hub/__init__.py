"""Models on the Hub: the config alone for a plan, and a download that goes on where it stopped for apply."""
