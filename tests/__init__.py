"""The test suite; `tests.support` holds what its rooms share."""
