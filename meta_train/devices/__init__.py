"""The devices and processes that do the work."""
