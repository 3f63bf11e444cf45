"""The pages that training runs leave behind: a run's report.html, and comparisons; files that fetch nothing."""
