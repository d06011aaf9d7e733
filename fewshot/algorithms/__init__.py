"""Few-shot algorithms, one file each; every file holds only what makes its algorithm different."""
