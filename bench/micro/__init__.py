"""Single functions against what one would use without them, as ratios of one run."""
