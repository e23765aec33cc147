"""Where files are: this machine's file system, or a bucket (gs://, s3://). Only this package knows the difference."""
