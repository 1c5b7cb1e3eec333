"""What happens when weights go: patterns, masked evaluation, sweeps."""
