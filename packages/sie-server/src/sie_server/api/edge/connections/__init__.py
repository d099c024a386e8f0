"""The HTTP connections below the application, bounded in bytes, in time and in number."""
