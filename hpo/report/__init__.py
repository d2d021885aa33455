"""The report of a study, as data and as a folder of pages and pictures; `write.write_report` makes it."""
