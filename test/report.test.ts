import fc from 'fast-check'
import t from 'tap'
import type { Problem } from '../src/errors.ts'
import { redactor } from '../src/redaction.ts'
import { renderProblems, renderTable } from '../src/report.ts'

const SOURCE = [
  'services:',
  '  - name: a',
  '    retries: x',
  '    password: hunter2',
  '    token: "{vault://env/t}"',
  `    path: /${'p'.repeat(200)}`
].join('\r\n')

function at(line: number, column: number, more: Partial<Problem['place']> = {}): Problem {
  return {
    code: 'POSTERN_X',
    message: 'must be integer',
    fix: 'Write a number.',
    place: { file: 'postern.yaml', line, column, path: 'services[0].retries', ...more }
  }
}

await t.test(
  'a problem shows its place, its line with a caret under the column, the fix and the code',
  async t => {
    t.equal(
      renderProblems([at(3, 14)], { color: false, source: SOURCE }),
      [
        'postern.yaml:3:14 services[0].retries: must be integer',
        '  3 |     retries: x',
        '                   ^',
        '  Write a number. [POSTERN_X]',
        '',
        '1 problem',
        ''
      ].join('\n')
    )
  }
)

await t.test('without a source there is no line', async t => {
  for (const source of [{}, { source: () => undefined }, { source: '' }]) {
    t.equal(
      renderProblems([at(3, 14, { path: '' })], { color: false, ...source }),
      'postern.yaml:3:14: must be integer\n  Write a number. [POSTERN_X]\n\n1 problem\n'
    )
  }
})

await t.test(
  'an outage is one screen: a line for each reference and place under its cause',
  async t => {
    const missing = (vault: string, n: number, cause: string): Problem => ({
      code: 'POSTERN_VAULT_UNREACHABLE',
      message: `{vault://${vault}/r${n}/key} has no value: The vault could not be asked for r${n}: ${cause}`,
      fix: 'Check the network.',
      place: { file: 'postern.yaml', line: 3, column: n + 10, path: `consumers[${n}].key` },
      reference: `{vault://${vault}/r${n}/key}`
    })
    const problems = [
      at(3, 14),
      ...[1, 2, 13].map(n => missing('one', n, 'it answered 503')),
      missing('one', 4, 'no answer within 10 s'),
      missing('two', 5, 'it answered 503')
    ]
    const lines = renderProblems(problems, { color: false, source: SOURCE }).split('\n')
    t.same(lines.slice(5), [
      '3 references without a value, vault one: The vault could not be asked for it: it answered 503',
      '  postern.yaml:3:11 consumers[1].key   {vault://one/r1/key}',
      '  postern.yaml:3:12 consumers[2].key   {vault://one/r2/key}',
      '  postern.yaml:3:23 consumers[13].key  {vault://one/r13/key}',
      '  Check the network. [POSTERN_VAULT_UNREACHABLE]',
      '',
      '1 reference without a value, vault one: The vault could not be asked for it: no answer within 10 s',
      '  postern.yaml:3:14 consumers[4].key  {vault://one/r4/key}',
      '  Check the network. [POSTERN_VAULT_UNREACHABLE]',
      '',
      '1 reference without a value, vault two: The vault could not be asked for it: it answered 503',
      '  postern.yaml:3:15 consumers[5].key  {vault://two/r5/key}',
      '  Check the network. [POSTERN_VAULT_UNREACHABLE]',
      '',
      '6 problems',
      ''
    ])
    const few = renderProblems(problems.slice(0, 5), { color: false, source: SOURCE })
    t.equal(few.match(/\^/g)?.length, 5, 'few show their lines')
  }
)

await t.test('the source may be given by file; settings have a name and no line', async t => {
  const shown = renderProblems([at(2, 5), at(1, 1, { file: 'environment', path: 'POSTERN_X' })], {
    color: false,
    source: file => (file === 'postern.yaml' ? SOURCE : 'secret text')
  })
  t.match(shown, /2 \| {3}- name: a/)
  t.match(shown, /^environment POSTERN_X: must be integer$/m)
  t.notMatch(shown, /secret text/)
  t.match(shown, /2 problems\n$/)
})

await t.test('the literal value of a sensitive key is not shown, a reference is', async t => {
  t.notMatch(renderProblems([at(4, 15)], { color: false, source: SOURCE }), /hunter2/)
  t.match(renderProblems([at(4, 15)], { color: false, source: SOURCE }), /password: …/)
  t.match(
    renderProblems([at(5, 12)], { color: false, source: SOURCE }),
    /token: "{vault:\/\/env\/t}"/
  )
})

await t.test('a long line is cut around the place', async t => {
  const shown = renderProblems([at(6, 190)], { color: false, source: SOURCE }).split('\n')
  t.ok(shown.every(line => line.length < 140))
  t.equal(shown[2]!.at(-1), '^')
  t.equal(shown[1]![shown[2]!.length - 1], 'p')
})

await t.test('colour only when asked for', async t => {
  t.ok(renderProblems([at(3, 14)], { color: true, source: SOURCE }).includes('\u001b[31m'))
  t.ok(renderTable(['a'], [['1']], { color: true }).startsWith('\u001b[1ma\u001b[22m'))
  t.notOk(renderTable(['a'], [['1']]).includes('\u001b'))
})

await t.test('a table is aligned, short rows are filled', async t => {
  t.equal(
    renderTable(['name', 'state'], [['a', 'ok'], ['longer name', 'absent'], ['b']]),
    'name         state\na            ok\nlonger name  absent\nb\n'
  )
})

await t.test('no text reaches a terminal as a control sequence', async () => {
  const control = fc.string({
    unit: fc.constantFrom(...'ab[]0;31m\u0000\t\n\r\u001b\u007f\u009b\u0007')
  })
  fc.assert(
    fc.property(control, fc.integer({ min: 1, max: 30 }), (text, column) => {
      const table = renderTable(['x'], [[text]])
      const problem = renderProblems([{ ...at(1, column), message: text, fix: text }], {
        color: false,
        source: text
      })
      return [table, problem].every(shown => !/[^\P{Cc}\n]/u.test(shown))
    })
  )
})

await t.test(
  'literals that look like credentials are not shown, wherever they stand in a line',
  t => {
    const shown = (line: string): string =>
      renderProblems([at(1, line.length)], { color: false, source: line }).split('\n')[1]!
    t.equal(shown('url: "htp://user:hunter2@host/"'), '  1 | url: "htp://…           @host/"')
    t.equal(
      shown('  - {name: a, password: hunter2, headers: {Authorization: "Basic hunter2"}}'),
      '  1 |   - {name: a, password: …      , headers: {Authorization: …              }}'
    )
    t.equal(shown('{"token": \'hunter2\', "a": 1}'), '  1 | {"token": …        , "a": 1}')
    t.equal(shown('  Authorization: Bearer hunter2'), '  1 |   Authorization: …')
    const referring = '- {password: "{vault://env/x}", name: b}'
    t.equal(shown(referring), `  1 | ${referring}`)
    t.end()
  }
)

await t.test('a secret of several lines is masked as a whole, before its line ends go', t => {
  const value = 'a first line of it\nsecond\u0007'
  redactor.hold('of this test', [value])
  t.teardown(() => redactor.hold('of this test', []))
  const message = `nothing is at ${value}/x`
  t.match(
    renderProblems([{ ...at(1, 1), message }], { color: false }),
    'nothing is at [secret]/x\n'
  )
  t.match(renderTable(['place'], [[value]]), '[secret]\n')
  t.end()
})
