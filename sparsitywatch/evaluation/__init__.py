"""Run a model without a trace: its copy, masked evaluation, what is tried before, the X-ray."""
