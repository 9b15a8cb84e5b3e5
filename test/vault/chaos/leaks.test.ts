import t from 'tap'
import { leaks } from './leaks.ts'
import { aws, conjur, custom, hcv } from './subjects.ts'

await t.test('hcv, aws, conjur, custom', t => leaks(t, 'light', [hcv, aws, conjur, custom]))
