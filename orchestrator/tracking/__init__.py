"""Where metrics go: one file for each tracker."""
