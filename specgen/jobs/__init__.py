"""Many clips in one command: prompt files, the manifest, resuming, shards, Ray."""
