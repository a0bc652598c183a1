"""Speed, as ratios of two things measured in turns on one machine: `python -m scripts.bench [name ...]`."""
