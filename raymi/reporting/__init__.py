"""What runs came to, as pictures, tables and one page; without MLflow."""
