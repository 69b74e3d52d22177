"""What people look at: pictures, the report of a run, the page to draw on."""
