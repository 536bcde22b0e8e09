"""Settings of the site: `make docs` builds it into build/docs."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import peftjax

project = 'peftjax'
author = 'the peftjax authors'
copyright = author
release = version = peftjax.__version__

extensions = [
    'myst_nb',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx_copybutton',
    'docs._ext.site',
]
exclude_patterns = ['_ext', 'generated', 'comparison', 'merging_study']
# Every link is checked: a name that is written as a link must have a page.
nitpicky = True

myst_enable_extensions = ['attrs_inline', 'deflist']
myst_heading_anchors = 3
# Blocks of shell sessions and plain text have no language.
highlight_language = 'none'

nb_execution_mode = 'cache'
# What a notebook writes is not left among the sources.
nb_execution_in_temp = True
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True

autodoc_member_order = 'bysource'
autodoc_typehints = 'signature'
maximum_signature_line_length = 80
napoleon_use_ivar = True
python_use_unqualified_type_names = True

html_theme = 'furo'
html_title = 'peftjax'
html_static_path = ['_static']
html_css_files = ['site.css']
html_math_renderer = 'mathml'
html_theme_options = {
    'source_repository': 'https://github.com/peftjax/peftjax/',
    'source_branch': 'main',
    'source_directory': 'docs/',
}
copybutton_prompt_text = r'>>> |\.\.\. |\$ '
copybutton_prompt_is_regexp = True
