"""The proxy as Python sees it: its settings, its rules file and the URL of what it stands before."""
