"""Other questions than the watch's: fine-tuned curves, conclusions over seeds, audits."""
