"""What results of all kinds share: tables, seconds and memory, a folder with its origin.
May import: files.py.
Start with result_folder.py.
"""
