"""The tests, a folder per package of the source tree; what they share is imported as ``tests.support``."""
