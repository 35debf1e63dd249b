"""Long runs whose memory must stay flat: python -m tests.endurance."""
