"""The site: README, docs and committed notebooks by Sphinx; ``make site`` adds the pages of the API."""

project = html_title = "FlowOE, replicated"
root_doc = "README"
extensions = ["myst_nb", "sphinx_external_toc", "sphinx-mathjax-offline"]
external_toc_path = "docs/site/toc.yml"
include_patterns = ["README.md", "benchmarks/README.md", "docs/**.md", "notebooks/*.ipynb"]
exclude_patterns = [".*", "build", "artifacts"]
# Outputs are shown as they were committed.
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
html_theme = "sphinx_book_theme"
html_theme_options = {"navbar_persistent": [], "show_toc_level": 2}
html_context = {"default_mode": "auto"}
html_static_path = ["static"]
html_css_files = ["site.css"]
templates_path = ["templates"]
html_sidebars = {"**": ["navbar-logo.html", "search-button-field.html", "sbt-sidebar-nav.html", "api.html"]}
