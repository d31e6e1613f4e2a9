"""From the logs and results of a sweep's runs to tables, figures and one page."""
