"""What runs say beside each other: `python -m fewshot.report DIR…`."""
