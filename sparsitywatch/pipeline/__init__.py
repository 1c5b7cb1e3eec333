"""What both drivers share: a snapshot becomes a record, a record becomes events and files."""
