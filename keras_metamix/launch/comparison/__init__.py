"""Files that other tools make of the same float model: what `metamix-benchmark --compare` sets
beside ours."""
