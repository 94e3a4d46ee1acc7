"""Shared parts of the tests: fakes, local servers and the app as a process."""
