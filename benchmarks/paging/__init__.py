"""What pages.py is made of: logs of made-up runs, and a browser that opens their pages."""
