"""DeepNets-1M as published: its files, their checks and their import."""
