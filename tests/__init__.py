"""The tests of peftjax."""
