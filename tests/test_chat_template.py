"""Chat templates write what transformers has them write, within bounds of time, size and memory."""

import datetime

import pytest

from peftjax.train.data import chat_template
from peftjax.train.data.chat_template import write_conversations

TALK = [{'role': 'user', 'content': "it's <b> & é"}, {'role': 'assistant', 'content': 'yo'}]


def _write(template, special=None, **options):
    [(_, whole)] = write_conversations(template, [TALK], special or {}, **options)
    return whole


@pytest.mark.parametrize(
    ('template', 'text'),
    [
        ('{{ messages[0].content | tojson }}', '"it\'s <b> & é"'),
        ('{{ {"b": [1, 2], "a": none} | tojson }}', '{"b": [1, 2], "a": null}'),
        ('{{ {"b": 1, "a": 2} | tojson(indent=1, sort_keys=true) }}', '{\n "a": 2,\n "b": 1\n}'),
        ('{{ "é" | tojson(ensure_ascii=true) }}', '"\\u00e9"'),
        ('{% for m in messages %}{{ m.role }}{% break %}{% endfor %}', 'user'),
        (
            '{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}'
            '{{ m.role }}{% endfor %}',
            'assistant',
        ),
        (
            '{% for m in messages %}{% generation %}{{ m.content[:2] }}{% endgeneration %}'
            '{% endfor %}',
            'ityo',
        ),
        # A block of its own scope, as the one of transformers.
        ('{% generation %}{% set a = 1 %}{% endgeneration %}{{ a is defined }}', 'False'),
        ('{{ tools is none }}{{ documents is none }}{{ evil is defined }}', 'TrueTrueFalse'),
        ('{{ bos_token }}{{ pad_token is defined }}', '<s>False'),
    ],
)
def test_templates_find_what_transformers_gives_them(template, text):
    assert _write(template, {'bos_token': '<s>', 'pad_token': ''}) == text


def test_the_date_is_now_or_the_one_given():
    template = "{{ strftime_now('%d %b %Y') }}"
    assert _write(template, today='2024-07-26') == '26 Jul 2024'
    before = datetime.date.today()
    assert _write("{{ strftime_now('%Y-%m-%d') }}") in {
        str(before),
        str(datetime.date.today()),
    }
    with pytest.raises(ValueError, match='Invalid isoformat'):
        _write(template, today='yesterday')


@pytest.mark.parametrize(
    ('template', 'told'),
    [
        ("{{ raise_exception('A' * 50000000) }}", 'A{300}'),
        ("{{ raise_exception('\x1b]0;pwn\x07') }}", r'\\x1b\]0;pwn\\x07'),
        ('{{ raise_exception(messages) }}', 'role'),
        ('{% for i in range(10**9) %}{% endfor %}', r'more than 2 s|[Rr]ange too big'),
        ('{{ "a" * 10**6 }}', 'writes 1000000 characters'),
        ('{% set a = "a" * 10**9 %}{{ a ~ a }}', 'MemoryError|ended its process|more than 2 s'),
        ('{{ messages.__class__.__mro__ }}', 'unsafe|SecurityError'),
        ('{{ messages.append(1) }}', 'SecurityError|not safely|unsafe'),
        ('{{ (messages | attr("__class__")) ~ "" }}{{ 1/0 }}', 'cannot write'),
        ('{% if %}', 'cannot be read'),
    ],
)
def test_a_template_cannot_do_more(template, told):
    with pytest.raises(ValueError, match=told) as error:
        _write(template)
    assert len(str(error.value)) < 2000 and str(error.value).isprintable()


def test_a_format_finds_no_attributes_of_python():
    assert _write('{{ "{0.__class__}".format(messages) }}') == ''


def test_all_conversations_together_are_bounded(monkeypatch):
    talks = [TALK] * 20
    monkeypatch.setattr(chat_template, '_ALL_SECONDS', 0.01)
    monkeypatch.setattr(chat_template, '_EACH_SECONDS', 0.0)
    with pytest.raises(ValueError, match='s for 20 conversations'):
        write_conversations('{{ messages }}', talks, {})
    monkeypatch.undo()
    # The bound of each is 100,000 characters; of many, it is far less.
    with pytest.raises(ValueError, match='conversations that are much shorter'):
        write_conversations('{{ "a" * 99000 }}', [TALK] * 1000, {})
    monkeypatch.setattr(chat_template, '_MOST_MESSAGES', 50)
    with pytest.raises(ValueError, match='characters, more than 50'):
        write_conversations('{{ messages }}', talks, {})
