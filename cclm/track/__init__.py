"""What a run says about itself: metrics, progress, throughput."""
