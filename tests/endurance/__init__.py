"""Long runs whose memory must not grow: python -m tests.endurance."""
