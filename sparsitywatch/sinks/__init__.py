"""Where records and events go."""
