"""Data: sources give images by class, splits say which classes, draws say which images make a task."""
