"""The worker: puts the rooms together and runs a stage step by step."""
