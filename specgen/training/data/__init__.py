"""The project's own training data: folk tunes arranged, rendered and captioned by rule."""
