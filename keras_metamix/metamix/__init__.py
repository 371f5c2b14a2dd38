"""MetaMix (AAAI 2024): bit-meta and bit-search training, then weight training."""
