import fc from 'fast-check'
import {
  looksLikeReference,
  parseReference,
  parseTemplate,
  type Reference,
  type Template
} from '../../src/vault/reference.ts'
import { type Budget, explore, mutated } from './budget.ts'

const segment = fc.string({ minLength: 1, maxLength: 12, unit: 'grapheme' })
const name = fc.constantFrom('prefix', 'region', '__proto__', 'constructor', 'toString')
const written = fc
  .record({
    vault: fc.stringMatching(/^[a-z][a-z0-9-]{0,8}$/),
    segments: fc.array(segment, { minLength: 1, maxLength: 4 }),
    whole: fc.boolean(),
    version: fc.option(fc.nat(), { nil: undefined }),
    fallback: fc.option(segment, { nil: undefined }),
    overrides: fc.dictionary(name, segment, { maxKeys: 2 })
  })
  .map(fields => ({ ...fields, text: textOf(fields) }))

interface Written {
  readonly vault: string
  readonly segments: readonly string[]
  readonly whole: boolean
  readonly version: number | undefined
  readonly fallback: string | undefined
  readonly overrides: Readonly<Record<string, string>>
}

function textOf({ vault, segments, whole, version, fallback, overrides }: Written): string {
  const query = Object.entries({
    ...overrides,
    ...(fallback === undefined ? {} : { default: fallback })
  }).map(([key, value]) => `${encodeURIComponent(key)}=${encodeURIComponent(value)}`)
  return (
    `{vault://${vault}/${segments.map(encodeURIComponent).join('/')}${whole ? '/' : ''}` +
    `${query.length === 0 ? '' : `?${query.join('&')}`}${version === undefined ? '' : `#${version}`}}`
  )
}

function expect(condition: boolean, what: string): void {
  if (!condition) throw new Error(what)
}

function checkParsed(parsed: Reference, meant: Written): void {
  const { segments, overrides } = meant
  const keyed = !meant.whole && segments.length > 1
  expect(parsed.vault === meant.vault, 'the vault')
  expect(parsed.resource === (keyed ? segments.slice(0, -1) : segments).join('/'), 'the resource')
  expect(parsed.key === (keyed ? segments.at(-1) : undefined), 'the key')
  expect(parsed.fallback === meant.fallback, 'the default')
  expect(parsed.version === meant.version?.toString(), 'the version')
  expect(Object.keys(parsed.overrides).length === Object.keys(overrides).length, 'the overrides')
  for (const [key, value] of Object.entries(overrides)) {
    expect(Object.getOwnPropertyDescriptor(parsed.overrides, key)?.value === value, key)
  }
}

/** Gives undefined where the text is told to be malformed; any other error is one of the parser's. */
function attempt<T>(parse: () => T): T | undefined {
  try {
    return parse()
  } catch (error) {
    if ((error as { code?: string }).code === 'POSTERN_REFERENCE_INVALID') return undefined
    throw error
  }
}

function checkTemplate(template: Template, text: string): void {
  const again = template.map(part => (typeof part === 'string' ? part : part.text)).join('')
  expect(again === text, 'a template is its text')
  for (const part of template) {
    if (typeof part === 'string') expect(!part.includes('{vault://'), 'no reference stays text')
    else expect(looksLikeReference(part.text), 'what parses looks like one')
  }
}

const TOKENS = [
  '{vault://',
  '{',
  '}',
  '#',
  '?',
  '&',
  '=',
  '/',
  '%',
  '%00',
  ';',
  '@',
  ':',
  '[',
  ']',
  ' '
]

/** What is written comes back; every other text is a template, no reference at all, or told. */
export function fuzzReferences(budget: Budget): Promise<number> {
  const texts = mutated(
    fc.array(written, { maxLength: 3 }).map(all => all.map(({ text }) => text).join('-')),
    TOKENS
  )
  const property = fc.property(written, texts, (meant, text) => {
    checkParsed(parseReference(meant.text), meant)
    attempt(() => parseReference(text))
    const template = attempt(() => ({ parts: parseTemplate(text) }))
    if (template?.parts !== undefined) checkTemplate(template.parts, text)
    else if (template !== undefined) expect(!text.includes('{vault://'), 'none is overlooked')
  })
  return explore(property, budget)
}
