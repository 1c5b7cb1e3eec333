"""What ranks.py is made of: processes on loopback, what each of them measures, a cost model."""
